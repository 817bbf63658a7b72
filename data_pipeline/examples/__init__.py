"""From records to batches: fields, the order of examples, decoding, streams of batches."""
