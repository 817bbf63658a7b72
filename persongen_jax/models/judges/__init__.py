"""Networks that only judge images: FID's Inception, LPIPS and FaceNet."""
