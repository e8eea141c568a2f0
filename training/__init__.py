"""DeepSpeed: from token shards to a base model, an assistant, and a reinforced assistant."""

import os
import sys
from pathlib import Path

# Set at import, since launchers start a process per rank and DeepSpeed reads these before any function of ours runs.
# DeepSpeed builds its CPU op where this points; the default is one folder for all projects of a user, in which the
# lock file of one killed build hangs all others.
os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path.cwd() / ".crawl2chat" / "torch_extensions"))
# DeepSpeed wraps Muon's kernels in torch.compile: a minute of compilation for a few matrix products, whose bits then
# depend on what the compiler found. Eager they are as fast on a CPU.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
# The environment's own ninja: two versions of it take each other's build of the op for outdated, and build it anew.
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
