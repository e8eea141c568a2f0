"""What a stage makes: `<root>/<stage>/<partition>/<fingerprint>/` with a `manifest.json`, written last.

The life of a stage:

    building = artifact.start(storage, run, artifact.Identity(stage, section, seed, inputs))
    if isinstance(building, Published):           # exactly this was made before: verified, nothing to do
        return
    for part in parts:
        if part not in building.committed():      # a kill costs one part
            ... storage.write(building.file(name), ...)
            building.commit(part, {...})
    building.publish(files, counts, numbers)

A *run* (`<root>/runs/<run>/`) ties the stages of one recipe together: `recipe.yaml` and one pointer per stage, by which
the next stage finds its input. Readers list files from the manifest, never from the folder.
"""

from pipeline.artifact.artifact import (
    MANIFEST,
    Content,
    Cost,
    Counts,
    File,
    Input,
    Manifest,
    Published,
    Stage,
    digest,
    is_published,
    lineage,
    read,
)
from pipeline.artifact.building import (
    Building,
    Identity,
    commit,
    describe,
    is_committed,
    start,
)
from pipeline.artifact.runs import (
    Pointer,
    RunArtifacts,
    adopt,
    fail,
    newest_run,
    of_run,
    pointer,
    pointers,
    pointers_of,
    run_name,
    runs_with,
    write_pointer,
)
from pipeline.artifact.state import (
    Plan,
    RunState,
    last_sign,
    plan,
    recipe_name,
    run_exists,
    run_state,
    state_of,
    write_plan,
)

__all__ = [
    "MANIFEST", "Building", "Content", "Cost", "Counts", "File", "Identity", "Input", "Manifest", "Plan", "Pointer",
    "Published", "RunArtifacts", "RunState", "Stage", "adopt", "commit", "describe", "digest", "fail", "is_committed",
    "is_published", "last_sign", "lineage", "newest_run", "of_run", "plan", "pointer", "pointers", "pointers_of",
    "read", "recipe_name", "run_exists", "run_name", "run_state", "runs_with", "start", "state_of", "write_plan",
    "write_pointer",
]  # fmt: skip
