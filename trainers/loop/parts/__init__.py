"""What an update is made of: losses, precision, batch norm, clipping, optimizer, schedule, EMA, random states."""
