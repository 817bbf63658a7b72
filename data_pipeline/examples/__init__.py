"""From records to batches: fields, which example comes when, decoding, streams of batches."""
