"""What tests share: twins, small files, small runs."""
