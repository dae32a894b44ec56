"""cnorm's norms inside other libraries: import the one you use, say ``cnorm.interop.torch``.

cnorm itself imports none of them, so these libraries stay optional.
"""
