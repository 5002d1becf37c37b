"""A party's folder and process: keys, provision, server, client, verification."""
