"""What run folders say: tables from finished cells. Nothing here trains."""
