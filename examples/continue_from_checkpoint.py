"""
Trains a finished model further on new posts with the same labels:

    python examples/continue_from_checkpoint.py outputs/mine more_posts.csv photos outputs/mine_updated

The vocabulary, the labels and the sizes are the checkpoint's; what changes is the weights, at a small learning rate. A
run that was interrupted needs none of this: give its own command again and it resumes.
"""

import argparse

from transformers import Trainer, TrainingArguments, set_seed

from hf_mamba import HFMambaForSequenceClassification, HFMambaProcessor
from hf_mamba.classification.data import DataArguments, PostCollator, load_posts


def main(argv=None):
    """Trains, evaluates before and after, and saves. Returns the validation loss of each."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("train_file")
    parser.add_argument("image_dir")
    parser.add_argument("output_dir")
    parser.add_argument("--learning_rate", type=float, default=1e-4)
    parser.add_argument("--epochs", type=int, default=3)
    args = parser.parse_args(argv)

    set_seed(42)
    model = HFMambaForSequenceClassification.from_pretrained(args.checkpoint)
    processor = HFMambaProcessor.from_pretrained(args.checkpoint)
    posts = load_posts(
        DataArguments(train_file=args.train_file, image_dir=args.image_dir),
        seed=42,
        label_names=[model.config.id2label[i] for i in range(model.config.num_labels)],  # in the order of its logits
        problem_type=model.config.problem_type,
    )
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            args.output_dir,
            remove_unused_columns=False,
            num_train_epochs=args.epochs,
            per_device_train_batch_size=32,
            learning_rate=args.learning_rate,
            report_to="none",
        ),
        train_dataset=posts.splits["train"],
        eval_dataset=posts.splits["validation"],
        data_collator=PostCollator(processor),
        processing_class=processor,
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    trainer.save_model()
    return {"loss before": before, "loss after": trainer.evaluate()["eval_loss"]}


if __name__ == "__main__":
    print(main())
