"""What every algorithm here is made of; nothing in here knows any of them."""
