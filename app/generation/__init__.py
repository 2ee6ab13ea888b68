"""The embedded language model: it lets the service answer chats with no upstream configured."""
