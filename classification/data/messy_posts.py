"""What becomes of posts with unreadable images and of empty posts: an error, or they are left out and counted.

Nothing is left out silently: each time a warning says how many posts or images, and names the first; `Posts.dropped`
keeps the counts for the reports.
"""

from collections.abc import Mapping, Sequence

from .columns import MODALITIES
from .images import BadImage, find_bad_images
from .posts import BAD_IMAGE, EMPTY_POST, Posts


_SHOWN = 5  # images that an error names


def check_images(posts: Posts, *, progress: bool = True) -> None:
    """
    Decodes every image once and refuses unreadable ones; an `image_cache` of the posts is filled along the way.

    Raises:
        ValueError: names the first unreadable images by row and path, and says how many there are.
    """
    apply_on_bad_image(posts, find_bad_images(posts, progress=progress))


def leave_out_bad_images(
    posts: Posts, *, on_bad_image: str, on_empty_post: str = "error", progress: bool = True
) -> None:
    """Like `check_images`, but leaves out what can't be read, see `apply_on_bad_image`. For a single process."""
    bad = find_bad_images(posts, progress=progress)
    apply_on_bad_image(posts, bad, on_bad_image=on_bad_image, on_empty_post=on_empty_post)


def apply_on_bad_image(
    posts: Posts, bad: Sequence[BadImage], *, on_bad_image: str = "error", on_empty_post: str = "error"
) -> None:
    """
    Does with unreadable images what the flags say.

    Args:
        posts: changed in place unless `on_bad_image` is "error"
        bad: what `find_bad_images` found, the same in all processes

    Raises:
        ValueError: `on_bad_image` is "error": names the first unreadable images by row and path, and says how many
            there are.
    """
    if not bad:
        return
    distinct: dict[str, BadImage] = {}
    for image in bad:
        distinct.setdefault(image.key, image)
    examples = list(distinct.values())[:_SHOWN]
    shown = "\n".join(f"  {image.split}: {posts.where(image.split, image.row)}: {image.why}" for image in examples)
    more = f"\n  and {len(distinct) - _SHOWN} more" if len(distinct) > _SHOWN else ""
    what = f"{len(distinct)} images (column {posts.columns.get('image')!r}) can't be read:\n{shown}{more}"
    if on_bad_image == "error":
        raise ValueError(
            f"{what}\nReplace these files, drop their rows, or go on without them by --on_bad_image drop or keep_text."
        )
    posts.report(what)
    for split in list(posts.splits):
        keys_of: dict[int, list[str]] = {}
        for image in bad:
            if image.split == split:
                keys_of.setdefault(image.row, []).append(image.key)
        leave_out(posts, split, keys_of, on_bad_image, on_empty_post)


def leave_out(
    posts: Posts, split: str, keys_of: Mapping[int, Sequence[str]], on_bad_image: str, on_empty_post: str
) -> None:
    """
    Drops posts with bad images, or these images alone, and then the posts that are empty without them.

    Args:
        posts: changed in place
        keys_of: row of the split -> the keys (`source_key`) of its bad images, one for each use
    """
    if not keys_of:
        return
    if on_bad_image == "drop":
        why = "an image of theirs is missing or can't be read (--on_bad_image)"
        return posts.drop(split, keys_of, BAD_IMAGE, why)
    posts.leave_out_images(split, keys_of, "are missing or can't be read")
    apply_on_empty_post(posts, split, on_empty_post)


def apply_on_empty_post(posts: Posts, split: str, on_empty_post: str) -> None:
    """
    Drops posts that have neither text nor image.

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
            "(--on_empty_post drop does), or give them a text or an image."
        )
    posts.drop(split, empty, EMPTY_POST, f"they have {what} (--on_empty_post)")


def check_some_are_left(posts: Posts) -> None:
    """
    Refuses to go on with a split whose posts were all dropped.

    Raises:
        ValueError: names it, and why they were.
    """
    for split, (raw, rows) in posts.origins.items():
        if not len(rows):
            counts = ", ".join(f"{number} {reason}" for reason, number in posts.dropped[split].items())
            raise ValueError(f"{raw.place}: no {split} post is left, all were dropped ({counts}). Check the data.")
