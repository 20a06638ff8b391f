"""What a TUN's vnet header means: its codec, the check of headers that come from peers, and segmentation in
software.
"""
