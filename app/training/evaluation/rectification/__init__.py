"""What the rectification suite is made of: who writes, who scores, and what is counted."""
