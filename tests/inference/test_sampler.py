"""The sampler against `generate` of transformers, a batch against single rows, and tools at token level."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from inference import generate
from inference.network import build
from inference.sampler import Sampler, Sampling, choose, seeds
from inference.tools import load_tools
from pipeline.errors import InputError
from pipeline.recipe import Model
from tokenizer import bpe
from tokenizer.chat import IM_END, OUTPUT, OUTPUT_END, PAD, TOOL, TOOL_END
from training.engine.export import export

CONFIG = Model(preset="qwen3", layers=2, width=32, heads=2, kv_heads=1, head_dim=16, mlp_width=64, window=48, tied=True)
TOKENIZER = bpe.Tokenizer.from_bytes(bpe.train(["one and two and three"] * 3, 300, "qwen2"))
PROMPTS = [[5, 6, 7], [9], [20, 21, 22, 23, 24, 25, 26], [40, 41]]


def network(spread: float = 1.0) -> Any:
    """A random model; a larger `spread` makes its distributions less even."""
    torch.manual_seed(1)
    net = build(CONFIG, TOKENIZER.vocabulary, TOKENIZER.end_of_text, TOKENIZER.special(PAD), seed=5)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.0 + spread)
    return net.eval()


class Scripted(nn.Module):
    """A model that chooses the ids of a script, one per forward pass; `fed` keeps the inputs of the first row."""

    def __init__(self, script: list[int]) -> None:
        super().__init__()
        self.inner, self.script, self.fed = network(), script, []  # type: ignore[var-annotated]
        self.config = self.inner.config

    def forward(self, **options: Any) -> Any:
        out = self.inner(**options)
        self.fed.append(options["input_ids"][0].tolist())
        out.logits[:] = -100.0
        out.logits[:, :, self.script[len(self.fed) - 1]] = 0.0
        return out


def test_greedy_samples_of_a_batch_are_those_of_generate_on_single_rows() -> None:
    net = network(spread=4.0)
    samples = Sampler(net, TOKENIZER).sample(PROMPTS, Sampling(12, 0.0), seeds("x", 4))
    ends = [TOKENIZER.special(IM_END), TOKENIZER.end_of_text]
    for prompt, sample in zip(PROMPTS, samples, strict=True):
        ids = torch.tensor([prompt])
        out = net.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=ends,
            pad_token_id=TOKENIZER.special(PAD),
        )
        assert sample.ids == out[0, len(prompt) :].tolist()
        assert sample.finished == (sample.ids[-1] in ends)
    assert len({tuple(sample.ids) for sample in samples}) > 1


def test_a_row_is_sampled_the_same_alone_and_in_a_batch() -> None:
    sampler, row_seeds = Sampler(network(), TOKENIZER), seeds("x", 4)
    together = sampler.sample(PROMPTS, Sampling(16, 1.0), row_seeds)
    for at, prompt in enumerate(PROMPTS):
        alone = sampler.sample([prompt], Sampling(16, 1.0), row_seeds[at : at + 1])[0]
        assert alone.ids == together[at].ids
        assert alone.logprobs == pytest.approx(together[at].logprobs, abs=1e-4)
    backwards = sampler.sample(PROMPTS[::-1], Sampling(16, 1.0), row_seeds[::-1])
    assert [sample.ids for sample in backwards[::-1]] == [sample.ids for sample in together]
    assert [sample.ids for sample in sampler.sample(PROMPTS, Sampling(16, 1.0), seeds("y", 4))] != [
        sample.ids for sample in together
    ]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_are_those_of_one_forward_pass(temperature: float) -> None:
    net = network()
    for prompt, sample in zip(
        PROMPTS, Sampler(net, TOKENIZER).sample(PROMPTS, Sampling(10, temperature), seeds("x", 4)), strict=True
    ):
        with torch.no_grad():
            logits = net(torch.tensor([prompt + sample.ids])).logits[0]
        said = torch.log_softmax(logits / temperature, -1)[len(prompt) - 1 : -1]
        expected = said[torch.arange(len(sample.ids)), torch.tensor(sample.ids)]
        torch.testing.assert_close(torch.tensor(sample.logprobs), expected, rtol=1e-4, atol=1e-4)
        assert sample.mask == [1] * len(sample.ids)


def test_a_tool_runs_at_token_level() -> None:
    call = [TOKENIZER.special(TOOL), *TOKENIZER.encode("calculator\n47+85"), TOKENIZER.special(TOOL_END)]
    output = [TOKENIZER.special(OUTPUT), *TOKENIZER.encode("132"), TOKENIZER.special(OUTPUT_END)]
    answer = [*TOKENIZER.encode("It is 132."), TOKENIZER.special(IM_END)]
    net = Scripted([*call, *[7] * len(output), *answer])
    sampler = Sampler(net, TOKENIZER, load_tools(["calculator"]))
    sample = sampler.sample([[5, 6]], Sampling(48, 1.0), [1])[0]
    assert sample.ids == call + output + answer
    assert sample.mask == [1] * len(call) + [0] * len(output) + [1] * len(answer)
    assert len(sample.logprobs) == len(sample.ids) and sample.finished and sample.tools == 1
    assert net.fed == [[5, 6], *([token] for token in sample.ids[:-1])]  # the output of the tool was fed to the model
    assert sampler.answer(sample) == "It is 132."
    assert sampler.text(sample) == "<|tool|>calculator\n47+85<|/tool|><|output|>132<|/output|>It is 132."


@pytest.mark.parametrize(
    ("before", "call", "said"),
    [
        ([], "what", "error: no tool "),
        ([TOOL], "what", "error: no tool what"),
        ([TOOL], "calculator", "error"),
        ([TOOL], "calculator\nwhat", "error"),
    ],
)
def test_an_invalid_call_gets_an_error(before: list[str], call: str, said: str) -> None:
    script = [*map(TOKENIZER.special, before), *TOKENIZER.encode(call), TOKENIZER.special(TOOL_END)]
    sample = Sampler(Scripted([*script, *[7] * 40]), TOKENIZER, load_tools(["calculator"])).sample(
        [[5]], Sampling(30, 0.0), [1]
    )[0]
    expected = [TOKENIZER.special(OUTPUT), *TOKENIZER.encode(said), TOKENIZER.special(OUTPUT_END)]
    assert sample.ids[len(script) : len(script) + len(expected)] == expected


def test_without_a_tool_nothing_is_called() -> None:
    sample = Sampler(Scripted([TOKENIZER.special(TOOL_END)] * 4), TOKENIZER).sample([[5]], Sampling(4, 0.0), [1])[0]
    assert sample.tools == 0 and sample.mask == [1] * 4 and not sample.finished


def test_a_row_ends_at_the_limit_and_at_the_window() -> None:
    net = Scripted([7] * 60)
    samples = Sampler(net, TOKENIZER).sample([[5] * 40, [5] * 3], Sampling(20, 0.0), [1, 2])
    assert [len(sample.ids) for sample in samples] == [8, 20] and not any(sample.finished for sample in samples)
    with pytest.raises(InputError, match="fills the window of 48"):
        Sampler(net, TOKENIZER).sample([[5] * 48], Sampling(1, 0.0), [1])
    assert Sampler(net, TOKENIZER).sample([], Sampling(5, 0.0), []) == []


def test_the_mode_of_the_model_is_left_as_it_was() -> None:
    net = network().train()
    Sampler(net, TOKENIZER).sample([[5]], Sampling(2, 1.0), [1])
    assert net.training


def test_draws_follow_the_distribution() -> None:
    logprobs = torch.tensor([0.5, 0.0, 0.3, 0.2]).log()
    draws = torch.rand(20_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rows = logprobs.expand(len(draws), 4)

    def shares(**cut: Any) -> list[float]:
        return (torch.bincount(choose(rows, draws, **cut), minlength=4) / len(draws)).tolist()

    assert shares() == pytest.approx([0.5, 0.0, 0.3, 0.2], abs=0.015)
    assert shares(top_k=2) == pytest.approx([0.625, 0.0, 0.375, 0.0], abs=0.015)
    assert shares(top_p=0.75) == pytest.approx([0.625, 0.0, 0.375, 0.0], abs=0.015)
    assert shares(top_p=0.5) == shares(top_k=1) == [1.0, 0.0, 0.0, 0.0]
    assert shares(min_p=0.5) == pytest.approx([0.625, 0.0, 0.375, 0.0], abs=0.015)
    assert shares(min_p=1.0) == [1.0, 0.0, 0.0, 0.0]
    edges = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert choose(rows[:2], edges).tolist() == [0, 3]


def test_seeds_depend_on_their_key_and_extend_those_of_a_smaller_count() -> None:
    assert seeds("1:rl:3", 8)[:4] == seeds("1:rl:3", 4)
    assert len(set(seeds("1:rl:3", 8) + seeds("1:rl:4", 8))) == 16


@pytest.mark.parametrize(("stop", "said"), [(" and", "one and"), ("ne a", "one a"), ("\n", "one and two and three")])
def test_a_stop_text_ends_a_row_wherever_tokens_are_cut(stop: str, said: str) -> None:
    script = [*TOKENIZER.encode("one and two and three"), TOKENIZER.special(IM_END)]
    sampler = Sampler(Scripted(script), TOKENIZER)
    sample = sampler.sample([[5]], Sampling(40, stop=("never", stop)), [1])[0]
    assert sample.finished and sample.ids == script[: len(sample.ids)]
    assert sampler.text(sample).startswith(said) and len(sampler.text(sample)) < len(said) + 8


def test_a_stop_text_inside_a_word_ends_its_row_only() -> None:
    net, row_seeds = network(), seeds("x", 4)
    free = Sampler(net, TOKENIZER).sample(PROMPTS, Sampling(16, 1.0), row_seeds)
    stop = TOKENIZER.decode(free[2].ids[3:5])
    samples = Sampler(net, TOKENIZER).sample(PROMPTS, Sampling(16, 1.0, stop=(stop,)), row_seeds)
    for sample, whole in zip(samples, free, strict=True):
        assert sample.ids == whole.ids[: len(sample.ids)]
        assert (len(sample.ids) < len(whole.ids)) <= (stop in TOKENIZER.decode(sample.ids))
    assert len(samples[2].ids) <= 5


def test_ids_are_streamed_as_they_are_sampled() -> None:
    heard: dict[int, list[int]] = {row: [] for row in range(4)}
    samples = Sampler(network(), TOKENIZER).sample(
        PROMPTS, Sampling(12, 1.0), seeds("x", 4), stream=lambda row, token: heard[row].append(token)
    )
    assert [heard[row] for row in range(4)] == [sample.ids for sample in samples]


def test_many_prompts_go_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler, row_seeds = Sampler(network(), TOKENIZER), seeds("x", 4)
    whole = sampler.sample_all(PROMPTS, Sampling(8, 1.0), row_seeds)
    monkeypatch.setattr("inference.sampler.BATCH_ROWS", 3)
    assert [sample.ids for sample in sampler.sample_all(PROMPTS, Sampling(8, 1.0), row_seeds)] == [
        sample.ids for sample in whole
    ]


def said(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setattr("sys.argv", ["generate", *arguments])
    generate.main()
    return capsys.readouterr().out


def test_the_command_prints_the_same_streamed_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    export(network(spread=3.0), TOKENIZER, tmp_path)
    arguments = ["--model", str(tmp_path), "--prompt", "one", "--prompt", "two", "--samples", "2", "--tokens", "9"]
    arguments += ["--temperature", "1.5", "--min-p", "0.001"]
    plain = said(arguments, monkeypatch, capsys)
    assert plain.count("one") >= 2 and plain.index("one") < plain.index("two")
    assert said([*arguments, "--stream"], monkeypatch, capsys) == plain == said(arguments, monkeypatch, capsys)
    assert said([*arguments, "--seed", "2"], monkeypatch, capsys) != plain
    assert not said([*arguments, "--chat"], monkeypatch, capsys).startswith("one")


@pytest.mark.slow
def test_a_batch_of_a_demo_model_takes_seconds() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # with two, one spins while it waits for the other, which counts as CPU time
    sizes = {"layers": 6, "width": 192, "heads": 3, "kv_heads": 3, "head_dim": 64, "mlp_width": 512, "window": 512}
    config = CONFIG.model_copy(update=sizes)
    net: Any = build(config, 4096, TOKENIZER.end_of_text, TOKENIZER.special(PAD), 1)
    started = time.process_time()
    Sampler(net, TOKENIZER).sample([[5] * 16] * 256, Sampling(32, 1.0), seeds("x", 256))
    torch.set_num_threads(threads)
    assert time.process_time() - started < 10  # 2.7 CPU seconds where it was measured
