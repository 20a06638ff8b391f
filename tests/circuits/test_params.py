from circuits import params


def test_sizes_are_those_of_the_protocol_document():
    assert (params.UNIT, params.LINK_FRAME, params.MAX_TRAIN_UNITS, params.N_MAX) == (1384, 1388, 48, 4)
    assert params.SLOT_BYTES == 7 + 1 + 16
    assert params.FORWARD_HEADER_BYTES == 4 * params.SLOT_BYTES == 96
    assert params.BACKWARD_HEADER_BYTES == 8 * params.N_MAX == 32
    assert params.FORWARD_BODY_BYTES == 1384 - 96
    assert params.BACKWARD_BODY_BYTES == 1384 - 32 - 16


def test_a_train_holds_the_largest_super_packet_both_ways():
    largest_item = 4 + 10 + 65_535
    overhead = max(params.FORWARD_OVERHEAD_BYTES, params.BACKWARD_OVERHEAD_BYTES)
    assert params.MAX_TRAIN_BYTES - overhead >= largest_item


def test_a_key_stays_far_from_the_ciphers_limits():
    blocks = (1 << params.EPOCH_BITS) * -(-params.MAX_TRAIN_BYTES // 16)
    assert blocks < 1 << 33  # AES-GCM: forgery advantage about blocks**2 / 2**129
