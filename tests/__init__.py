"""The tests of shmarray; see README.md here for which folder takes which."""
