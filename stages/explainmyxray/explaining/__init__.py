"""From a file as a person has it to a report, what it says, and how sure the model is."""
