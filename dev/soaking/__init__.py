"""What dev/soak.py does: training that is killed and resumed, and long runs whose memory is watched."""
