"""What no stream told is found by comparing mailboxes with what is known of them."""
