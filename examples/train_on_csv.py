"""
Trains a model on a csv file of posts in Python, with transformers' own Trainer:

    python examples/train_on_csv.py posts.csv photos outputs/from_csv

posts.csv has the columns text, image and label, and image paths start in photos; docs/data.md has the other column
names and formats. A tenth of the posts is set aside for validation. `python run_classification.py --do_train` does
this from the command line, with checks, intervals and a model card: this file is for code of your own.
"""

import argparse

from transformers import Trainer, TrainingArguments, set_seed

from hf_mamba import HFMambaConfig, HFMambaForSequenceClassification, HFMambaImageProcessor, HFMambaProcessor
from hf_mamba.classification.data import DataArguments, PostCollator, load_posts, train_wordpiece
from hf_mamba.processing_hf_mamba import build_wordpiece_tokenizer


def main(argv=None):
    """Trains, evaluates and saves. Returns the validation metrics."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("train_file")
    parser.add_argument("image_dir")
    parser.add_argument("output_dir")
    parser.add_argument("--image_size", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=10)
    args = parser.parse_args(argv)

    set_seed(42)
    posts = load_posts(DataArguments(train_file=args.train_file, image_dir=args.image_dir), seed=42)
    texts = [text for text in posts.column("train", "text") if text]
    tokenizer = build_wordpiece_tokenizer(train_wordpiece(texts), max_length=64)
    image_processor = HFMambaImageProcessor(size={"height": args.image_size, "width": args.image_size}, patch_size=16)
    processor = HFMambaProcessor(image_processor=image_processor, tokenizer=tokenizer)
    config = HFMambaConfig(
        vocab_size=len(tokenizer),
        image_size=args.image_size,
        patch_size=16,
        num_text_layers=1,
        num_image_layers=1,
        num_fusion_layers=2,
        id2label=dict(enumerate(posts.label_names)),
        problem_type=posts.problem_type,
    )
    trainer = Trainer(
        model=HFMambaForSequenceClassification(config),
        args=TrainingArguments(
            args.output_dir,
            remove_unused_columns=False,  # texts and images are read when a batch is made
            num_train_epochs=args.epochs,
            per_device_train_batch_size=32,
            learning_rate=1e-3,
            report_to="none",
        ),
        train_dataset=posts.splits["train"],
        eval_dataset=posts.splits["validation"],
        data_collator=PostCollator(processor),
        processing_class=processor,
        compute_metrics=lambda output: {"accuracy": (output.predictions.argmax(-1) == output.label_ids).mean()},
    )
    trainer.train()
    trainer.save_model()  # with the processor, and the code that loads both where this package is not installed
    return trainer.evaluate()


if __name__ == "__main__":
    print(main())
