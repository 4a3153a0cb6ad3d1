"""What every stage stands on; imports nothing from the other folders."""
