"""The verbs of `lit-hf`."""

VERBS = {
    "fit": "Train and evaluate a model, and export the best one.",
    "inspect": "Show the first rows as the model will see them, without loading it.",
    "plan": "Say what a run will need of memory and time, without weights.",
    "validate": "Evaluate a run's best checkpoint on the validation split.",
    "test": "Evaluate a run's best checkpoint on the test split.",
    "predict": "Predict rows with a run or an exported model.",
    "export": "Write a run's model as a plain Hugging Face folder.",
    "push": "Upload a run's best model to the Hugging Face Hub.",
    "checkpoints": "List a run's checkpoints, and verify them.",
    "env": "Show versions and devices, and what is missing here.",
}
"""What each verb does, in the order of the help."""
