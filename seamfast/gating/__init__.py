"""The intake gate: a policy, the evidence it asks for, a verdict, and the documents that tell it."""
