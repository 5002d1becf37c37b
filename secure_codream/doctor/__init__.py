"""What stands between a party's folder and a run, looked at before it: nothing is written, sent or joined."""
