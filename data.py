"""Prompts: openers of film reviews, written for this kit, neutral in tone; and where other prompts come from.

Provided, you need not change this. The policy continues an opener; only the continuation is scored, so an
opener must not carry a verdict of its own ("The best part was" would lift the base model's score).
"""

import random
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from kit.errors import UserError

IMDB_PROMPT_WORDS = (2, 8)  # how many first words of a review make a prompt

# Q1. None of these prompts has a label. What takes the place of one in training, and through which argument
# of which call does it get there?
TRAIN_PROMPTS: tuple[str, ...] = (
    "This movie",
    "The film",
    "The plot",
    "I watched",
    "The director",
    "The opening scene",
    "The lead actor",
    "The second half",
    "After the credits",
    "This documentary",
    "The soundtrack",
    "Every character",
    "The story begins",
    "My brother and I",
    "When the lights",
    "The screenplay is",
    "As a remake, this",
    "The ending of this",
    "The dialogue in this",
    "I rented this one",
    "The whole cast",
    "Compared with the novel,",
    "For a first feature,",
    "The camera work here",
    "Halfway through, the film",
    "The supporting actors",
    "I saw this film on",
    "The main character is a",
    "Set in the seventies, this",
    "This is the story of",
    "The costumes and the sets",
    "In the first ten minutes",
    "The scene in the kitchen",
    "Last night we watched the",
    "The producers of this film",
    "It is a film about",
    "The actor who plays the",
    "As the detective, she is",
    "The trailer for this movie",
    "Once the train leaves, the",
    "The comedy in this film",
    "A lot of the film",
    "There is a moment when",
    "The music during the chase",
    "What the film does with",
    "The black and white photography",
    "The relationship between the two",
    "Everyone in the theater was",
    "The third film of the series",
    "I had read about this movie",
    "The way the story is told",
    "The villain of the piece is",
    "The writer behind this series has",
    "If you have seen the original,",
    "The romance between the two leads",
    "In the middle of the film,",
    "The special effects in this movie",
    "Most of the action takes place",
    "The children in the film are",
    "The last twenty minutes of it",
    "I watched this with my parents and",
    "Two friends drive across the country and",
    "The film follows a young woman who",
    "The first time I saw this movie",
    "For a film made on this budget,",
    "The script, written by two newcomers, is",
    "By the time the second act begins,",
    "The city itself plays a part in",
    "It was filmed in a small town",
    "Without giving away the plot, I think",
    "The narrator explains everything, and the result",
    "Some of the scenes at the harbor",
    "The editing between the two time lines",
    "On paper this is a simple story,",
    "The voice acting in this animated film",
    "I came to this film knowing nothing",
    "The conversation on the roof is where",
    "As far as war films go, this",
    "When the family moves to the country,",
    "The movie was on television, and it",
    "The performance of the actor in the lead",
    "My friends told me about this film, and",
    "The film is two hours long, and I",
    "From the first shot of the empty road,",
    "The director has made four films, and this",
    "I have seen this film twice, and each time",
    "The story of the two sisters and their father",
    "There are three songs in the film, and they",
    "A man comes home after ten years, and what",
    "This is a western, or at least it",
    "The courtroom scenes take up half the film and",
    "Having seen the stage play, I found that the film",
    "The film was shot over three summers, and the cast",
    "At the festival where I saw it, the audience was",
    "Before I say anything about the acting, the story is",
    "The book has four hundred pages, and the film made from it",
    "On a rainy Sunday we put this on, and the first hour",
    "It is set on a ship in winter, and the crew is",
    "The same studio made a version of this in the fifties, which was",
    "If somebody asked me to describe this movie in one word, I would say",
)

# Q2. A hack shows on these prompts as plainly as on those above. What do held-out prompts protect from, then,
# and from what not?
HELD_OUT_PROMPTS: tuple[str, ...] = (
    "This film",
    "The movie",
    "The acting",
    "I thought",
    "The story",
    "The final scene",
    "This series is",
    "The photography",
    "The leading lady",
    "The first half",
    "The script",
    "The characters are",
    "At the start",
    "My wife and I",
    "When the film ended,",
    "The pacing of the",
    "As a sequel, this",
    "The humor in this",
    "The score by the",
    "I bought the disc",
    "The two brothers",
    "Like many thrillers, this",
    "For a low budget film,",
    "The lighting in the house",
    "Near the end, the film",
    "The minor characters in it",
    "We saw this movie at",
    "The hero of the film",
    "Set during the war, this",
    "This is a movie about",
    "The locations and the music",
    "During the first half hour",
    "The scene at the station",
    "A week ago I saw",
    "The people who made this",
    "It is the kind of",
    "The actress who plays the",
    "As the old teacher, he",
    "The poster of the film",
    "After the funeral, the story",
    "The suspense in this movie",
    "Much of the dialogue",
    "The moment the door opens,",
    "The dancing in the second act",
    "What the director has done here",
    "The use of color in this",
    "The friendship of the two boys",
    "In our row, people were",
    "The pilot episode of this show",
    "I knew the book, so the",
    "The twist in the last act",
    "The mother in this family is",
    "If you know the earlier films,",
    "The fight on the bridge was",
    "The version shown on television is",
    "Most of the jokes in the",
    "I sat through the film and",
    "Three students spend a night in a",
    "The film tells of a doctor who",
    "For an actor in his first role,",
    "By the end of the long dinner scene,",
    "The script was written in two weeks, and",
    "The film runs for ninety minutes, and the plot",
    "Having watched every film of this director, I think that",
)


def load_prompts(
    source: str = "builtin",
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_prompt_tokens: int | None = None,
    limit: int | None = None,
) -> list[str]:
    """Training prompts.

    `source` is `builtin` (the openers above), `imdb` (the first 2 to 8 words of shuffled IMDB reviews, half
    of them positive, from the Hub), `imdb:FILE` (the same from a parquet file) or the path of a text file with
    one prompt a line. With a `tokenizer`, a prompt that is empty or longer than `max_prompt_tokens` is refused.

    Raises:
        UserError: no such file, no prompt in it, or an empty or too long prompt (with its line number).
    """
    if source == "builtin":
        prompts = list(TRAIN_PROMPTS)
    elif source == "imdb" or source.startswith("imdb:"):
        texts, _ = load_imdb(source.partition(":")[2] or None)
        rng = random.Random(0)
        # Q3. Why not the first 60 words? If the held-out prompts were as long, which two numbers of the val
        # line would change for the very same policy?
        starts = [" ".join(text.split()[: rng.randint(*IMDB_PROMPT_WORDS)]) for text in texts]
        prompts = list(dict.fromkeys(p for p in starts if p and p not in HELD_OUT_PROMPTS))[: limit or 4096]
    else:
        try:
            prompts = Path(source).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"--prompts {source}: cannot read it as UTF-8 text ({error}); give builtin, imdb, or a file "
                "with one prompt a line"
            ) from None
        if not prompts:
            raise UserError(f"--prompts {source}: the file is empty; write one prompt a line")
    check_prompts(prompts, source, tokenizer, max_prompt_tokens)
    return prompts[:limit]


def check_prompts(
    prompts: Sequence[str],
    source: str,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_prompt_tokens: int | None = None,
) -> None:
    """Refuse, with its line number, a prompt that is empty or leaves no room in the context (`UserError`)."""
    for line, prompt in enumerate(prompts, start=1):
        if not prompt.strip():
            raise UserError(f"--prompts {source}, line {line}: the prompt is empty; remove the line")
        if "\0" in prompt:
            raise UserError(f"--prompts {source}, line {line}: a NUL byte; is it a text file?")
        if tokenizer is None:
            continue
        length = len(tokenizer(prompt)["input_ids"])
        if length == 0:
            raise UserError(f"--prompts {source}, line {line}: the tokenizer makes no token of this prompt")
        if max_prompt_tokens is not None and length > max_prompt_tokens:
            raise UserError(
                f"--prompts {source}, line {line}: {length} tokens, but only {max_prompt_tokens} leave room for a "
                "completion in the model's context; shorten the prompt or --max_completion_length"
            )


def load_imdb(source: str | None = None, split: str = "train") -> tuple[list[str], list[int]]:
    """IMDB reviews (Maas et al. 2011) as cleaned texts and labels (1 positive, 0 negative), shuffled.

    The data set is sorted by label, so a naive slice is all negative. Here the two classes are shuffled
    apart and dealt out in turn: every slice of even length is balanced. `source` is a parquet file with columns
    text, label and (optionally) split; `None` means `stanfordnlp/imdb` on the Hub.

    Raises:
        UserError: the file or the Hub cannot be read.
    """
    from datasets import load_dataset

    try:
        if source is None:
            rows = load_dataset("stanfordnlp/imdb", split=split)
        else:
            if not Path(source).is_file():
                raise FileNotFoundError(f"no such file: {source}")
            rows = load_dataset("parquet", data_files=source, split="train")
            if "split" in rows.column_names:
                wanted = [i for i, s in enumerate(rows["split"]) if s == split]
                rows = rows.select(wanted)
        texts, labels = list(rows["text"]), list(rows["label"])
    except (
        Exception
    ) as error:  # datasets raises a dozen kinds; whichever it is, the user can only do one thing
        where = source or "stanfordnlp/imdb on the Hub"
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"cannot read IMDB from {where} ({reason}); give a local parquet file") from None

    rng = random.Random(0)
    by_label: dict[int, list[str]] = {0: [], 1: []}
    for text, label in zip(texts, labels, strict=True):
        if label in by_label:  # -1: the unsupervised reviews
            by_label[label].append(" ".join(text.replace("<br />", " ").split()))
    for group in by_label.values():
        rng.shuffle(group)
    pairs = zip(by_label[1], by_label[0], strict=False)  # equal numbers of both
    shuffled = [(text, label) for good, bad in pairs for text, label in ((good, 1), (bad, 0))]
    return [text for text, _ in shuffled], [label for _, label in shuffled]
