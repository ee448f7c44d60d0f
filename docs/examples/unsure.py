"""Ask a person if the classifier abstains."""

from edgecnn.runtime import Classifier

classifier = Classifier.load("photos.edgecnn")
result = classifier.classify("photo.jpg", threshold=0.999)
print("ask a person" if result.decision == "abstain" else result.decision)
