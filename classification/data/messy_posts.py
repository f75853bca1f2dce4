"""What becomes of posts with unreadable pictures and of empty posts: an error, or they are left out and counted.

Nothing is left out unseen: each time a warning says how many posts or pictures, and names the first; `Posts.dropped`
keeps the counts for the reports.
"""

from collections.abc import Iterable

from transformers.utils import logging

from .columns import MODALITIES
from .images import BadImage, UnpackImages, find_bad_images


logger = logging.get_logger(__name__)

ON_BAD_IMAGE = ("error", "drop", "keep_text")
ON_EMPTY_POST = ("error", "drop")

# The counts of Posts.dropped
BAD_IMAGE, EMPTY_POST, IMAGES_LEFT_OUT = "posts with a bad picture", "empty posts", "pictures left out"


def check_images(posts, *, on_bad_image: str = "error", on_empty_post: str = "error", progress: bool = True) -> None:
    """`find_bad_images` and `settle_bad_images` at once, for a single process."""
    bad = find_bad_images(posts, progress=progress)
    settle_bad_images(posts, bad, on_bad_image=on_bad_image, on_empty_post=on_empty_post)


def settle_bad_images(
    posts, bad: list[BadImage], *, on_bad_image: str = "error", on_empty_post: str = "error"
) -> None:
    """
    Does with unreadable pictures what the flags say.

    Args:
        posts: Posts; changed in place
        bad: what `find_bad_images` found, the same in all processes

    Raises:
        ValueError: names the first unreadable pictures by row and path, and says how many there are.
    """
    if not bad:
        return
    distinct = {}
    for image in bad:
        distinct.setdefault(image.key, image)
    examples = list(distinct.values())[:5]
    shown = "\n".join(f"  {image.split}: {posts.where(image.split, image.row)}: {image.why}" for image in examples)
    more = f"\n  and {len(distinct) - 5} more" if len(distinct) > 5 else ""
    what = f"{len(distinct)} pictures (column {posts.columns.get('image')!r}) can't be read:\n{shown}{more}"
    if on_bad_image == "error":
        raise ValueError(
            f"{what}\nReplace these files, drop their rows, or go on without them by --on_bad_image drop or keep_text."
        )
    _say(posts, what)
    for split in list(posts.splits):
        of_row = {}
        for image in bad:
            if image.split == split:
                of_row.setdefault(image.row, []).append(image.key)
        leave_out_images(posts, split, of_row, on_bad_image, on_empty_post)


def leave_out_images(posts, split: str, of_row: dict[int, list[str]], on_bad_image: str, on_empty_post: str) -> None:
    """
    Drops posts with bad pictures, or these pictures alone, and then the posts that are empty without them.

    Args:
        posts: Posts; changed in place
        of_row: row of the split -> the keys (`source_key`) of its bad pictures, one for each use
    """
    if not of_row:
        return
    if on_bad_image == "drop":
        return _drop(
            posts, split, of_row, BAD_IMAGE, "a picture of theirs is missing or can't be read (--on_bad_image)"
        )
    dataset = posts.splits[split]
    unpack = dataset.format["format_kwargs"].get("transform") or UnpackImages()
    keys = frozenset(key for keys in of_row.values() for key in keys)
    posts.splits[split] = dataset.with_transform(unpack.without(keys))
    for row, keys in of_row.items():
        posts.num_images[split][row] -= len(keys)
    count = sum(map(len, of_row.values()))
    _count(posts, split, IMAGES_LEFT_OUT, count)
    _say(
        posts,
        f"{split}: {count} pictures of {len(of_row)} posts are missing or can't be read and are left out, the posts "
        f"stay (--on_bad_image keep_text). They are: {_examples(posts, split, of_row)}.",
    )
    settle_empty_posts(posts, split, on_empty_post)


def settle_empty_posts(posts, split: str, on_empty_post: str) -> None:
    """
    Drops posts that have neither text nor picture.

    Raises:
        ValueError: there are some, and `on_empty_post` is "error".
    """
    texts = posts.column(split, "text")
    empty = [row for row, count in enumerate(posts.num_images[split]) if not count and texts[row] is None]
    if not empty:
        return
    roles = [role for role in MODALITIES if role in posts.columns]
    looked = [f"{role} ({posts.columns[role]!r})" for role in roles]
    what = f"neither {' nor '.join(looked)}" if len(looked) > 1 else f"no {looked[0]}"
    if on_empty_post == "error":
        raise ValueError(
            f"{posts.where(split, empty[0])}: the post has {what} ({len(empty)} of {len(texts)} rows). Drop such rows "
            "(--on_empty_post drop does), or give them a text or a picture."
        )
    _drop(posts, split, empty, EMPTY_POST, f"they have {what} (--on_empty_post)")


def _drop(posts, split: str, rows: Iterable[int], reason: str, why: str) -> None:
    rows, total = sorted(rows), len(posts.splits[split])
    gone = set(rows)
    kept = [row for row in range(total) if row not in gone]
    raw, origin = posts.origins[split]
    lost = " There are no predictions for them." if split == "test" else ""
    _say(
        posts,
        f"{split}: {len(rows)} of {total} posts are dropped: {why}.{lost} They are: {_examples(posts, split, rows)}.",
    )
    posts.splits[split] = posts.splits[split].select(kept)
    posts.origins[split] = raw, [origin[row] for row in kept]
    posts.num_images[split] = [posts.num_images[split][row] for row in kept]
    _count(posts, split, reason, len(rows))


def check_some_are_left(posts) -> None:
    """
    Refuses to go on with a split whose posts were all dropped.

    Raises:
        ValueError: names it, and why they were.
    """
    for split, rows in posts.origins.items():
        if not len(rows[1]):
            counts = ", ".join(f"{number} {reason}" for reason, number in posts.dropped[split].items())
            raise ValueError(f"{rows[0].place}: no {split} post is left, all were dropped ({counts}). Check the data.")


def _say(posts, message):
    logger.log(logging.DEBUG if posts.quiet else logging.WARNING, message)


def _examples(posts, split, rows):
    raw, origin = posts.origins[split]
    return raw.where_all([origin[row] for row in sorted(rows)])


def _count(posts, split, reason, count):
    counts = posts.dropped.setdefault(split, {})
    counts[reason] = counts.get(reason, 0) + count
