"""A trained model as an object: found, read, checked, embedding faces, comparing and searching them."""
