"""The one facade that every dialect calls. Import `Engine` from here; everything else is inside."""
