"""The kernel that every program calls: from messages (or columns) to features, decisions and training updates. Pure."""
