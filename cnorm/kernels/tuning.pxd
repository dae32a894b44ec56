cdef extern from *:
    """
    static const double TINY = 1e-30;  /* below this, squares of floats have lost bits */
    """
    const double TINY


cdef enum:
    PART = 8           # tiles in a part
    SHORT = 32         # segments shorter than this are laid end to end before they are summed


cdef enum:
    STRIP = 256        # channels that are prepared at a time


cdef enum:
    WIDE = 32
    PARTS = 64
    PART_ROWS = 512
    PART_EVEN = 16         # rows that a part's are a multiple of
    STRIP_EVEN = 64        # columns that a strip's are a multiple of
    STRIP_LEAST = 128      # of a strip, at least, where parts are fewer than threads: about STRIP of them then
    WIDE_BLOCK = 16        # rows and columns at a time where sums are taken again in double
    ROW_GROUP = 8
    FAR_BYTES = 1 << 23
    PAGE = 4096
    FOLDED = 64            # columns that folded rows make, at most
    EVEN = 16              # elements of any type that are whole lanes
    LED_BYTES = 1 << 12    # of a run from which on it is worth while to begin at a line
    LEAD = 32              # elements before a line, at most


cdef enum:
    SLOT = 4                   # sums that backward takes of a unit: see there
    BAND_SEGMENT = 1 << 11     # a) bytes of one, at most
    BAND_BYTES = 1 << 18       # b) of all that is read for a band
    BAND_LEAST = 1 << 20       # b) of a call, at least
    BAND_GIVEN = 1 << 12       # c) of a segment, at most
    BAND_NEAR = 1 << 15        # d) of all that is read for a band,
    BAND_FAR = 1 << 12         # and that where it comes from memory: reads and writes alternate within a page
    BAND_FEW = 4               # d) units of a band, at least


cdef enum:
    FEW_SLOTS = 256


cdef enum:
    BLOCK_ROWS = 64
    LEAST_ROWS = 16             # each block's sums are added to those in double
    BLOCK_BYTES = 1 << 17       # of x, about
    GRAD_BYTES = 1 << 15        # of rows that are taken up again while they are in L1
    EXPECTED = 1 << 10          # of a row whose memory is asked for before it is written
    FETCHED = 1 << 9            # and of one that is asked for while the block before it is written
    SLOTS = 16
    SLOT_ELEMENTS = 1 << 17
    STRETCH = 1024              # elements of its rows that a thread takes where slots are few
    SHARED_ROWS = 512           # of a slot, over which it does not matter who adds it to the others
    ADDED = 128                 # elements of the slots that are added up at a time
    SLOT_EVEN = 512             # doubles, a page: slots are some and ADDED apart; few share the same sets of L1
    PARALLEL_SUMS = 1 << 14     # of shares, from which on threads add them up


cdef enum:
    # Bytes that a call reads and writes from which on it stores its result past the cache, which
    # is slower but leaves the cache to the input.
    STREAM_ONCE = 64 << 20    # the input is read once, or twice within a stretch that stays in cache
    STREAM_GRAD = 40 << 20    # rows backward, which are written a few at a time
    STREAM_AGAIN = 32 << 20   # it is read twice from end to end, or its units' segments lie apart


cdef enum:
    NEAR_BYTES = 20 << 20      # that a call reads and writes, and still finds in cache
    # Segments that lie apart, and whose bytes are between these: no prefetcher of the processor goes from one to
    # the next, and that is most of the way. The one that lies this many bytes on is prefetched.
    APART_LEAST = 1 << 9
    APART_MOST = 1 << 15
    APART_AHEAD = 1 << 12


cdef enum:
    LAID_ROWS = 16             # rows, and their elements, from which on a copy of their parameters pays
    LAID_ELEMENTS = 1 << 13
    LAID_BY_ONE = 1 << 20      # the same where other threads wait for what one of them copied


cdef enum:
    # Of the rows that one visit takes, which stay in L1 with their results:
    TOGETHER_BYTES = 1 << 14
    TOGETHER_LONG = 16         # rows, at most; and of short ones more,
    TOGETHER_SHORT = 1 << 13   # up to so many bytes


cdef enum:
    SPAN = 1024               # elements of a channel at a time, or positions: at most
    KEPT_BYTES = 24 << 10     # what a visit keeps: it stays in L1


cdef enum:
    OWN = 1024   # doubles of its stack that a kernel takes before it allocates


cdef enum:
    COEFFICIENTS = 7   # hi, scale, bias, slope, q, r, rstd
