"""Prints a token for a user, as a server in Python would sign it."""

import os
import sys
import time

import jwt


def token_for(user):
    claims = {
        "sub": user,
        "exp": int(time.time()) + 600,
        "roomcast": {"subscribe": ["chat.*", "user.{sub}"], "publish": ["chat.*"]},
    }
    return jwt.encode(claims, os.environ["ROOMCAST_JWT_HS256_SECRET"], algorithm="HS256")


if __name__ == "__main__":
    print(token_for(sys.argv[1]))
