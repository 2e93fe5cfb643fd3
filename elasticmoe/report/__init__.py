"""What a run was worth: its history, its evaluation, its summary and its plot."""
