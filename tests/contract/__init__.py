"""What programs outside rely on: the codec, the schemas, the golden bytes and the pages that describe them."""
