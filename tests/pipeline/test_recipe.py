"""A recipe is complete, refuses what it does not know with file, line and key, and reads back what it writes."""

from __future__ import annotations

import types
import typing
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from pipeline import recipe
from pipeline.errors import InputError, RecipeError
from pipeline.recipe import Learning, Recipe, load, parse
from pipeline.recipe.base import Section

RECIPES = sorted(Path("recipes").glob("*.yaml"))
DEMO = Path("recipes/demo.yaml")


@pytest.fixture
def text() -> str:
    return DEMO.read_text()


def refused(text: str, overrides: dict[str, Any] | None = None) -> str:
    with pytest.raises(RecipeError) as caught:
        parse(text, "my.yaml", overrides)
    return caught.value.what


def line_of(text: str, start: str) -> int:
    return next(n for n, line in enumerate(text.splitlines(), 1) if line.strip().startswith(start))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_load_and_bear_their_files_name(path: Path) -> None:
    assert load(path).name == path.stem


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_round_trip(path: Path) -> None:
    first = load(path)
    again = parse(first.to_yaml(), "again.yaml")
    assert again == first
    assert again.to_yaml() == first.to_yaml()


def models() -> set[type[BaseModel]]:
    """`Recipe` and every model reachable from its fields."""
    found: set[type[BaseModel]] = set()

    def visit(annotation: Any) -> None:
        plain = isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias)
        if plain and issubclass(annotation, BaseModel) and annotation not in found:
            found.add(annotation)
            for field in annotation.model_fields.values():
                visit(field.annotation)
        for argument in typing.get_args(annotation):
            visit(argument)

    visit(Recipe)
    return found


def test_no_field_has_a_default_and_nothing_extra_is_taken() -> None:
    found = models()
    sections = {value for value in vars(recipe).values() if isinstance(value, type) and issubclass(value, Section)} - {
        Section,
        Learning,  # what sections share
    }
    assert sections == found, "every section is part of the recipe"
    for model in found:
        assert model.model_config["extra"] == "forbid" and model.model_config["strict"]
        optional = [name for name, field in model.model_fields.items() if not field.is_required()]
        assert not optional, f"{model.__name__} has defaults"


def test_unknown_key_is_named_with_its_line(text: str) -> None:
    broken = text.replace("  verify: true", "  verify: true\n  verifi: true")
    assert refused(broken) == f"my.yaml:{line_of(broken, 'verifi')}: deduplicate.verifi: unknown key"


def test_missing_key_is_named_with_its_sections_line(text: str) -> None:
    broken = text.replace("  max_bucket: 32\n", "")
    assert refused(broken) == f"my.yaml:{line_of(broken, 'deduplicate:')}: deduplicate.max_bucket: missing"


def test_missing_section(text: str) -> None:
    broken = text[: text.index("approval:")]
    assert refused(broken) == "my.yaml:1: approval: missing"


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("seed: 1", "seed: '1'", "seed"),
        ("seed: 1", "seed: -1", "seed"),
        ("seed: 1", "seed: 1.5", "seed"),
        ("  verify: true", "  verify: 1", "deduplicate.verify"),
        ("  min_jaccard: 0.7", "  min_jaccard: 1.7", "deduplicate.min_jaccard"),
        ("  min_jaccard: 0.7", "  min_jaccard: .nan", "deduplicate.min_jaccard"),
        ("  kinds: [EMAIL, ", "  kinds: [MAIL, ", "redact.kinds.0"),
        ("  extractor: precision", "  extractor: best", "extract.extractor"),
        ("name: demo", "name: My Demo", "name"),
        ('max_top_ngram_chars: {"2": 0.2', 'max_top_ngram_chars: {"1": 0.2', "filter.gopher.max_top_ngram_chars"),
    ],
)
def test_wrong_values_are_refused_with_key_and_line(text: str, old: str, new: str, key: str) -> None:
    assert old in text
    broken = text.replace(old, new, 1)
    what = refused(broken)
    assert what.startswith(f"my.yaml:{line_of(broken, new.strip().partition(':')[0])}: {key}"), what


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        ({"de": {"gopher": {"min_wurds": 9}}}, "filter.by_language.de.gopher.min_wurds: unknown key"),
        (
            {"de": {"gopher": {"min_alpha_words": 7}}},
            "by_language.de.gopher.min_alpha_words: Input should be less than",
        ),
        ({"de": {"gopher": {"min_words": "9"}}}, "filter.by_language.de.gopher.min_words: Input should be a valid int"),
        ({"de": {"gopher": {"max_top_ngram_chars": {"5": 0.1}}}}, "filter.by_language.de.gopher.max_top_ngram_chars.5"),
        ({"de": {"languages": {"de": 0.1}}}, "filter.by_language.de.languages"),
        ({"fr": {}}, "by_language has 'fr', which languages has not"),
    ],
)
def test_a_wrong_limit_of_a_language_is_refused_by_name_and_place(text: str, limits: dict[str, Any], told: str) -> None:
    given = {"filter.languages": {"en": 0.65, "de": 0.8}, "filter.by_language": limits}
    what = refused(text, given | {"extract.languages": {"en": ["the"], "de": ["der"]}})
    where = "command line or form" if "fr" not in limits else f"my.yaml:{line_of(text, 'filter:')}"
    assert what.startswith(f"{where}: ") and told in what


def test_a_language_has_the_limits_of_all_but_those_that_it_names(text: str) -> None:
    limits = {"de": {"gopher": {"min_words": 20, "max_top_ngram_chars": {"2": 0.3}}, "c4": {"min_sentences": 0}}}
    given = {"filter.languages": {"en": 0.65, "de": 0.8}, "filter.by_language": limits}
    made = parse(text, "my.yaml", given | {"extract.languages": {"en": ["the"], "de": ["der"]}})
    common, german = made.filter, made.filter.for_language["de"]
    assert (german.gopher.min_words, german.c4.min_sentences) == (20, 0)
    assert german.gopher.max_top_ngram_chars == {"2": 0.3, "3": 0.18, "4": 0.16}
    told = {"min_words", "max_top_ngram_chars"}
    assert german.gopher.model_dump(exclude=told) == common.gopher.model_dump(exclude=told)
    assert german.fineweb == common.fineweb and set(common.for_language) == {"de"}
    assert parse(made.to_yaml(), "again.yaml") == made


def test_the_recipe_of_two_languages_is_fineweb_with_another_beside_english() -> None:
    one, two = load("recipes/fineweb.yaml"), load("recipes/multilingual.yaml")
    plain = {"languages", "by_language"}
    assert two.filter.model_dump(exclude=plain) == one.filter.model_dump(exclude=plain)
    assert two.extract.model_dump(exclude=plain) == one.extract.model_dump(exclude=plain)
    for section in ("extract", "filter"):
        english = {language: value for language, value in getattr(two, section).languages.items() if language == "en"}
        assert english == getattr(one, section).languages
    told = {"name", "extract", "filter"}
    assert two.model_dump(exclude=told) == one.model_dump(exclude=told)


def test_all_errors_are_told_at_once(text: str) -> None:
    what = refused(text.replace("seed: 1", "seed: x").replace("  verify: true", "  verify: maybe"))
    assert len(what.splitlines()) == 2


def test_exactly_one_input(text: str) -> None:
    both = text.replace("  crawl: null", "  crawl: CC-MAIN-2025-05")
    assert "give either 'warcs' or 'crawl'" in refused(both)
    neither = text.replace("  warcs: [tests/data/sample/*.warc.gz]", "  warcs: []")
    assert f"my.yaml:{line_of(text, 'input:')}: input: " in refused(neither)


def test_impossible_combinations(text: str) -> None:
    assert "pretrain.window (1024) exceeds model.window (512)" in refused(
        text, {"pretrain.window": 1024, "model.window": 512}
    )
    assert "exceed 1" in refused(text, {"rl.optimizer.warmup": 0.9, "rl.optimizer.decay": 0.2})
    for key in ("rl.max_new_tokens", "memorization.prompt_tokens"):
        assert f"{key} (512) leaves no room" in refused(text, {key: 512})
        assert parse(text, "my.yaml", {key: 511})
    assert "min_words (9) exceeds max_words (8)" in refused(
        text, {"filter.gopher.min_words": 9, "filter.gopher.max_words": 8}
    )
    assert "head_dim (63) must be even" in refused(text, {"model.head_dim": 63})


def test_overrides_replace_values(text: str) -> None:
    made = parse(text, "my.yaml", {"sft.epochs": 3, "input.warcs": ["a.warc"], "extract.block_list.words": []})
    assert (made.sft.epochs, made.input.warcs, made.extract.block_list.words) == (3, ["a.warc"], [])
    assert parse(text, "my.yaml", {"input.warcs": [], "input.crawl": "CC-MAIN-2025-05"}).input.crawl
    assert parse(text, "my.yaml") == load(DEMO), "nothing of an override stays behind"


@pytest.mark.parametrize("key", ["sft.epoch", "nothing.epochs", "sft.epochs.more", "epochs", ""])
def test_override_of_what_is_not_there(text: str, key: str) -> None:
    assert f"override {key!r}: my.yaml has no such key" in refused(text, {key: 1})


def test_override_of_the_wrong_kind(text: str) -> None:
    assert "sft.epochs" in refused(text, {"sft.epochs": "many"})


def test_what_is_no_recipe() -> None:
    assert refused("") == "my.yaml: a recipe is a mapping of sections"
    assert refused("- a\n") == "my.yaml: a recipe is a mapping of sections"
    assert refused("name: demo\nseed: [1\nmore: 2\n").startswith("my.yaml:3: not YAML")


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:pathlib.Path.touch [{}]",
        "!!python/object/new:pathlib.PosixPath [{}]",
        "!!python/name:os.system",
        "!!python/module:os",
        "!mine {{a: 1}}",
    ],
)
def test_a_recipe_makes_no_objects_and_runs_nothing(text: str, value: str, tmp_path: Path) -> None:
    file = tmp_path / "made"
    wrong = text.replace("seed: 1", f"seed: {value.format(file)}")
    assert wrong != text
    told = refused(wrong)
    assert told.startswith(f"my.yaml:{line_of(text, 'seed:')}: could not determine a constructor for the tag")
    assert not file.exists()


def test_an_alias_of_itself_ends() -> None:
    assert "my.yaml" in refused("name: &a {x: *a}\nseed: 1\n")
    many = "".join(f"a{n}: &a{n} {{x: *a{n - 1}, y: *a{n - 1}, z: *a{n - 1}}}\n" for n in range(1, 40))
    assert "a39: unknown key" in refused(f"a0: &a0 {{x: 1}}\n{many}")
    assert "name: Input should be a valid string" in refused("name: &a [*a]\n")


@pytest.mark.parametrize("name", ["../x", "/etc", "a/b", "..", "", "a b", "A", "x\n", "a\0"])
def test_a_name_of_a_recipe_is_one_of_a_folder(text: str, name: str) -> None:
    assert "name:" in refused(text, {"name": name})
    assert "input.crawl:" in refused(text, {"input.warcs": [], "input.crawl": f"CC-{name}/.."})


def test_a_password_in_a_url_is_refused_and_not_told(text: str) -> None:
    for url in ("https://me:planted@host/x.warc.gz", "s3://key:planted@bucket/*.warc.gz"):
        told = refused(text, {"input.warcs": ["a.warc.gz", url]})
        assert "holds a password" in told and "planted" not in told
        assert "planted" not in refused(text, {"extract.quality_model": [url]})
        assert "planted" not in refused(text, {"extract.page_seconds": f"see {url}"})
    assert parse(text, "my.yaml", {"input.warcs": ["https://host/a:b@c.warc.gz"]})


def test_file_that_is_not_there() -> None:
    with pytest.raises(InputError, match=r"recipe none\.yaml cannot be read"):
        load("none.yaml")


def test_recipe_cannot_be_changed() -> None:
    with pytest.raises(ValueError):
        load(DEMO).seed = 2


def test_section_is_plain_data_of_that_section_only() -> None:
    demo = load(DEMO)
    assert demo.section("redact") == {
        "kinds": ["EMAIL", "IP", "US_SSN", "CREDIT_CARD", "IBAN", "PHONE", "PASSPORT", "STREET_ADDRESS"],
        "person_model": None,
    }
    assert demo.section("filter")["gopher"]["max_top_ngram_chars"] == {"2": 0.2, "3": 0.18, "4": 0.16}


def test_names_need_a_model(text: str) -> None:
    assert "PERSON and person_model go together" in refused(text.replace("  kinds: [EMAIL", "  kinds: [PERSON, EMAIL"))
    assert "PERSON and person_model go together" in refused(text.replace("person_model: null", "person_model: names"))


def test_a_value_of_the_command_line_is_not_blamed_on_a_line_of_the_file(text: str) -> None:
    assert refused(text, {"pretrain.steps": "ten"}).startswith("command line or form: pretrain.steps: ")
    assert refused(text, {"pretrain.optimizer.betas": [2, 0.9]}).startswith(
        "command line or form: pretrain.optimizer.betas.0: "
    )
    # A rule about several keys, of which the file states the others.
    whole = refused(text, {"pretrain.window": 99999})
    assert whole.startswith("my.yaml:1: recipe: ") and whole.endswith(
        "(with pretrain.window from the command line or form)"
    )
    # What the file says wrongly is its own fault, whatever else is given.
    line = line_of(text, "seed:")
    broken = text.replace(text.splitlines()[line - 1], "seed: many")
    assert refused(broken, {"pretrain.steps": 10}).startswith(f"my.yaml:{line}: seed: ")


def test_a_key_given_twice_is_refused(text: str) -> None:
    assert "name: given twice" in refused(text + "\nname: other\n")
    assert "my.yaml:3: a: given twice" in refused("name: x\nchats:\n- {a: 1, a: 2}\n")


def test_a_long_value_is_cut_in_its_error(text: str) -> None:
    assert refused(text, {"sft.epochs": "x" * 999}).endswith(f'(given: "{"x" * 79}…)')


def test_a_file_that_is_not_utf_8_is_refused_with_its_line(tmp_path: Path, text: str) -> None:
    file = tmp_path / "demo.yaml"
    file.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert load(file) == parse(text, "my.yaml")
    file.write_bytes(f"{text}# caf\u00e9".encode("latin-1"))
    with pytest.raises(RecipeError, match=rf"demo\.yaml:{text.count(chr(10)) + 1}: not UTF-8"):
        load(file)
    file.write_text(text, encoding="utf-16")
    with pytest.raises(RecipeError, match=r"demo\.yaml:1: not UTF-8"):
        load(file)
