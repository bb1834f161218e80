"""Review corrections before any training learns from them: strangers may send what they like.

In: the folder of corrections (loupe/feedback.py). Out: its pictures, accepted or rejected, or waiting on.

review (asks, and moves pictures) → sheet (review.html, whose numbers the answers mean) and choice (reads "1,3-7").
"""
