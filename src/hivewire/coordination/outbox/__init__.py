"""Messages in the user's own transaction: an outbox for what is sent, an inbox for what was handled."""
