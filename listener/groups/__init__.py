"""Groups of mailboxes that share one connection: who is in which, how one lives, and what is kept of them."""
