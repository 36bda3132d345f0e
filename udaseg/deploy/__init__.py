"""What is done with a trained network: predictions for any picture or video, exports. Nothing here trains."""
