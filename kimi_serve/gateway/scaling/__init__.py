"""Pictures decoded, scaled down and encoded again, in processes of their own."""
