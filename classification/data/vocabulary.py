"""A WordPiece vocabulary from the training texts: the same for the same texts, in every process and run."""

from collections import Counter
from collections.abc import Iterable

from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer, WhitespaceSplit
from tokenizers.trainers import WordPieceTrainer

from ...processing_hf_mamba import PAD_TOKEN, UNK_TOKEN, clean_text


CONTINUATION = "##"
MAX_ALPHABET = 1000  # BERT's own; rarer characters (of a corpus with Chinese, say) become [UNK]


def train_wordpiece(
    texts: Iterable[str], *, vocab_size: int = 8000, min_frequency: int = 2, lowercase: bool = True
) -> dict[str, int]:
    """
    Learns word pieces as BERT's trainer does.

    The trainer of `tokenizers` numbers characters inside words in the order of a hash map, and that number decides
    between pairs of equal frequency, so ids and pieces differ from run to run. Given those characters in a fixed order
    as special tokens, it has nothing left to choose; only its vocabulary is kept, where they are pieces like all
    others. The order of the texts doesn't matter.

    Args:
        texts: the training texts; white space is collapsed as HFMambaProcessor does
        vocab_size: at most so many pieces; a small corpus gives fewer
        min_frequency: pairs that occur less often are not joined
        lowercase: lower-case and strip accents, as `build_wordpiece_tokenizer` does

    Returns:
        piece -> id: [PAD] 0, [UNK] 1, then characters, then joined pieces in the order they were learned.

    Raises:
        ValueError: no text holds a word, or `vocab_size` is too small.
    """
    if vocab_size < 4:
        raise ValueError(f"--vocab_size {vocab_size}: two ids go to {PAD_TOKEN} and {UNK_TOKEN}; give 4 or more.")
    words = _count_words(texts, lowercase)
    if not words:
        raise ValueError("No training text holds a word, so there is no vocabulary to learn: check the text column.")
    # Each character can be two pieces, one that starts a word and one inside; half the vocabulary is for joined ones
    alphabet = _most_frequent_characters(words, max(1, min(MAX_ALPHABET, (vocab_size - 2) // 4)))
    inside = {character for word in words for character in word[1:]}
    trainer = WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=[PAD_TOKEN, UNK_TOKEN, *(CONTINUATION + c for c in alphabet if c in inside)],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        continuing_subword_prefix=CONTINUATION,
        show_progress=False,
    )
    tokenizer = Tokenizer(WordPiece(unk_token=UNK_TOKEN))
    tokenizer.pre_tokenizer = WhitespaceSplit()  # of each word, as often as it occurs; all else is done
    tokenizer.train_from_iterator((" ".join([word] * count) for word, count in sorted(words.items())), trainer)
    return dict(sorted(tokenizer.get_vocab().items(), key=lambda piece: piece[1]))


def _count_words(texts: Iterable[str], lowercase: bool) -> Counter:
    """Words and punctuation marks as BERT's tokenizer cuts them."""
    normalizer, pre_tokenizer = BertNormalizer(lowercase=lowercase), BertPreTokenizer()
    words: Counter[str] = Counter()
    for text in texts:
        normalized = normalizer.normalize_str(clean_text(text))
        words.update(word for word, _ in pre_tokenizer.pre_tokenize_str(normalized))
    return words


def _most_frequent_characters(words: Counter, limit: int) -> list[str]:
    """The `limit` most frequent characters of the words, sorted; of equally frequent ones the smaller."""
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for character in word:
            counts[character] += count
    return sorted(sorted(counts, key=lambda character: (-counts[character], character))[:limit])
