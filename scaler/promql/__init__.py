"""What `source: prometheus` and its presets share: endpoint and credentials, questions and answers, the client.

Nothing here imports the HTTP client at module level: `scaler.promql.client` does, and is imported when a
client is opened.
"""
