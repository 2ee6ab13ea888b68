"""The suites: public sets, hidden prompts, fairness. Each one judges, counts and describes."""
