"""What the numbers of manifests and scores mean, in a sentence for people who see them; reasons: `pipeline.reasons`."""

from __future__ import annotations

from pipeline.reasons import REASONS

TERMS = {
    # deduplicate
    "candidate_pairs": "Pairs of documents whose MinHash signatures agree in at least one band.",
    "verified_pairs": "Candidate pairs that really are as similar as the recipe asks.",
    "large_buckets": "Bands that very many documents share; only some of their pairs are compared.",
    "clusters": "Groups of documents that are copies of each other; one document of each stays.",
    "known_before": "Copies of a document in a corpus that was made before and is named in deduplicate.against.",
    "largest_cluster": "Documents in the largest group of copies, the one that stays included.",
    # tokenizer and shard
    "vocabulary": "Number of different tokens, special ones included.",
    "trained_bytes": "Bytes of text from which the tokenizer was learned.",
    "held_out_documents": "Documents on which the tokenizer is measured, and from which it was not learned.",
    "bytes_per_token": "Bytes of text per token, on documents that the tokenizer was not learned from; more is better.",
    "train_bytes_per_token": "Bytes of text per token in the training shards; the tokenizer knows some of their text.",
    "tokens_per_word": "Tokens per word on the same held-out documents; fewer is better.",
    "train_bytes": "UTF-8 bytes of the texts of the training split.",
    "validation_bytes": "UTF-8 bytes of the texts of the validation split.",
    "validation_tokens": "Tokens kept for measuring, from which no stage learns.",
    # training
    "loss_first": "Mean loss of the first ten steps: nats per token, lower is better.",
    "loss_last": "Mean loss of the last ten steps: nats per token, lower is better.",
    "validation_loss": "Loss on held-out text: nats per token, lower is better.",
    "bits_per_byte": "Bits that the model needs for a byte of held-out text: lower is better, whatever the tokenizer.",
    "unigram_bits_per_byte": "The same of a table of how often each token occurs, which looks at no context.",
    "bigram_bits_per_byte": "The same of a table of token pairs, which looks at one token; a model must beat it.",
    "bigram_weight": "Weight of pairs against single tokens in that table, fitted on training text it has not counted.",
    "tokens_seen": "Tokens read in training; more than the corpus has where it was read more than once.",
    "tokens_learned": "Tokens of the assistant that were trained; questions and outputs of tools are not.",
    "rows": "Sequences of one window into which the conversations were packed.",
    "steps_skipped": "Steps without an update, since gradients were not finite.",
    "reward_first": "Mean reward of the first step's samples, from 0 to 1.",
    "reward_last": "Mean reward of the last step's samples, from 0 to 1.",
    "logprob_gap": "Largest difference between sampler and trainer in a token's log-probability: a check, near 0.",
    # evaluation
    "sampled_accuracy": "Share of right answers at temperature 1.",
    "greedy_accuracy": "Share of right answers where the likeliest token is always taken.",
    "tool_rate": "Share of sampled answers that call a tool.",
    "greedy_tool_rate": "Share of greedy answers that call a tool.",
    "accuracy_with_tool": "Share of right answers among the sampled ones that call a tool.",
    "accuracy_without_tool": "Share of right answers among the sampled ones that call no tool.",
    "answer_length": "Mean length of a sampled answer, in tokens.",
    "identity_said": "Share of answers with the assistant's name, where the question asks for it.",
    "identity_wrongly_said": "Share of answers with the assistant's name, where the question asks for something else.",
    "accuracy": "Share of questions where the right choice, or the right word, is the likeliest.",
    "accuracy_normalised": "The same, with likelihoods per character, so that short choices have no advantage.",
    "accuracy_error": "Standard error of the accuracy.",
    "accuracy_normalised_error": "Standard error of the normalised accuracy.",
    "perplexity": "Perplexity per word that is to be predicted; lower is better.",
    # costs of a stage
    "data_wait": "Seconds in which training waited for data.",
    "peak_bytes": "Most memory that a rank used.",
    "zero_stage": "What ZeRO splits among the ranks: 0 nothing, 1 optimizer state, 2 gradients too, 3 weights too.",
    "ranks": "Processes of the launch.",
    "resumed_at": "Step of the checkpoint from which the last attempt went on; 0 for none.",
    "step_seconds": "Seconds in steps, without start, evaluation and checkpoints.",
    "tflops": "Floating-point operations per second and rank, in 10^12.",
}  # fmt: skip


def meaning(label: str) -> str:
    """The sentence on a name or its label (`arithmetic: tool rate`), or an empty string where none is known.

    A benchmark's number is `<benchmark>_<number>`: where the whole name has no sentence, its end may.
    """
    name = label.rpartition(": ")[2].replace(" ", "_")
    known = REASONS | TERMS
    while name and name not in known:
        name = name.partition("_")[2]
    return known.get(name, "")
