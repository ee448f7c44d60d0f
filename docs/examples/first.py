from edgecnn.runtime import Classifier

classifier = Classifier.load("photos.edgecnn")
print(classifier.classify("photo.jpg").decision)
