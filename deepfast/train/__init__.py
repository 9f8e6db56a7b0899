"""What the recipes share: generated problems with checkable answers.

In: random generators. Out: problems and verdicts. It knows no tokenizer, no chat format, no model and no
PyTorch.
"""
