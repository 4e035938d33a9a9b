class Inconclusive(AssertionError): pass
assert_bound = assert_identity = assert_unbiased = None
