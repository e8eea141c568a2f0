"""Every reason for which a stage drops a page or a conversation, once, in a sentence for people who see it.

Thresholds are the recipe's, so no sentence names one. The reasons are in the order in which a page meets them.
"""

from __future__ import annotations

REASONS = {
    # extract: the archive
    "not_fetched": "The WARC file could not be downloaded or opened.",
    "not_a_warc": "The file is not a WARC or ARC archive.",
    "truncated": "The WARC file ends in the middle of a record; the records before that were read.",
    "no_response": "The archive holds no response of a server, as a WAT or WET file.",
    "damaged": "Bytes of the archive could not be read; reading went on at the next record.",
    # extract: the response
    "not_200": "The server answered with another status than 200, such as a redirect or an error.",
    "not_html": "The response is not an HTML page, but a picture, a PDF, a feed or the like.",
    "too_large": "The body exceeds the recipe's limit for the size of a page.",
    "blocked_domain": "The host, or a domain above it, is on the block list.",
    "blocked_url": "This very address is on the block list.",
    "blocked_word": "The address contains a word that the recipe blocks.",
    "digest_mismatch": "The body does not have the checksum that its record declares.",
    # extract: the page
    "empty": "The body is empty.",
    "language_gate": "A first look finds none of the recipe's languages; the text is not extracted.",
    "no_main_text": "The extractor finds no main text, only navigation or nothing.",
    "extraction_error": "The extractor failed on this page.",
    "page_timeout": "The extraction took longer than a page may take, and was stopped.",
    "page_memory": "The extraction needed more memory than a page may take, and was stopped.",
    "page_crash": "The process that extracted the page died.",
    # filter
    "other_language": "fastText gives the text another language, or the right one with too little probability.",
    "other_license": "The page declares none of the licenses that the recipe asks for.",
    "low_quality": "The recipe's quality classifier scores the text too low.",
    "gopher_too_short": "The text has too few words.",
    "gopher_too_long": "The text has too many words.",
    "gopher_short_words": "The words are too short on average, as in tables and lists of codes.",
    "gopher_long_words": "The words are too long on average, as where spaces are missing.",
    "gopher_symbols": "Too many '#' signs or ellipses for the number of words.",
    "gopher_bullets": "Too many lines begin with a bullet: a list, not a text.",
    "gopher_ellipses": "Too many lines end with an ellipsis, as in lists of teasers.",
    "gopher_few_letters": "Too few of the words contain a letter: mostly numbers and signs.",
    "gopher_stop_words": "Too few different stop words ('the', 'and', …): no running text.",
    "gopher_duplicate_lines": "Too many lines repeat an earlier line.",
    "gopher_duplicate_line_chars": "Too many characters are in lines that repeat an earlier line.",
    "gopher_duplicate_paragraphs": "Too many paragraphs repeat an earlier paragraph.",
    "gopher_duplicate_paragraph_chars": "Too many characters are in paragraphs that repeat an earlier one.",
    **{
        f"gopher_top_{n}gram": f"The most frequent sequence of {n} words makes up too much of the text."
        for n in (2, 3, 4)
    },
    **{
        f"gopher_duplicate_{n}grams": f"Too much of the text is in sequences of {n} words that occur more than once."
        for n in (5, 6, 7, 8, 9, 10)
    },
    "c4_few_sentences": "The text has too few sentences.",
    "c4_lorem_ipsum": "The text contains the placeholder 'lorem ipsum'.",
    "c4_curly_brace": "The text contains a curly brace, as program code does.",
    "fineweb_line_punctuation": "Too few lines end with a punctuation mark: menus and lists, not sentences.",
    "fineweb_short_lines": "Too many lines are short.",
    "fineweb_duplicate_line_chars": "Too many characters are in repeated lines, of the lines that C4's rules keep.",
    "fineweb_newlines": "Too many line breaks for the number of words.",
    # deduplicate
    "exact_copy": "Another document has exactly the same text; one of them stays.",
    "near_copy": "Another document has almost the same text (MinHash); one of them stays.",
    # decontaminate
    "taken_down": "The page is on a take-down list.",
    "contaminated": "The text shares a long sequence of words with an evaluation set.",
    # shard
    "beyond_budget": "The corpus has more tokens than the recipe takes; documents are taken by hash.",
    # sft
    "too_long": "The conversation does not fit into the window of the model.",
    "nothing_to_learn": "The conversation has no token of the assistant.",
    "held_out": "The conversation is kept for validation, and never learned from.",
}
