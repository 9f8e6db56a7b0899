"""What the training recipes share: problems with verifiers, documents, the stages, the model card.

In: a preset, a working directory, checkpoints. Out: checkpoints, logs, cards. PyTorch, transformers and TRL
are imported only by the modules that train. It knows no server and no command line of `deepfast`.
"""
