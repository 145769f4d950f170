"""What will go wrong or hurt when a COCO file is trained on, said before any training."""
