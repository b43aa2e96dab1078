"""Print the workspace members as the JSON matrix of the CI workflow, one job for each member and Python version."""

import json

from workspace import members

PYTHON_VERSIONS = ["3.11", "3.12"]


def main() -> None:
    print(json.dumps({"package": [member.name for member in members()], "python": PYTHON_VERSIONS}))


if __name__ == "__main__":
    main()
